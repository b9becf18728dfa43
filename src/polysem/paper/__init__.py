"""What arXiv 2505.11611 does and we would not, so that its numbers can be made again beside defensible ones."""
