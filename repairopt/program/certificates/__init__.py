"""What is proven about a solution: bounds, Farkas proofs, conflicts, exact checks."""
