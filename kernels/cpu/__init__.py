"""What a CPU runs: the operations in few passes over the data, forward and backward."""
