"""What a batch script asks Python: before training whether it can begin, after it whether the job comes back."""
