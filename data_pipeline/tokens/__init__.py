"""Tokens on disk: a source encoded once, for examples, whose lengths decide the packing, and for text that many runs see."""
