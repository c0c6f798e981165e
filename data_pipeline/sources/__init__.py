"""Where documents come from: files of several formats, near or far, and the index that gives random access to them."""
