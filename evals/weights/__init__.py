"""What training did to the weights: the rank of their change, matrix by matrix."""
