"""What a run costs, by arithmetic: sizes, FLOPs, memory, bytes on the wire. No torch."""
