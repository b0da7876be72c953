"""Random calls of what is public: each gives the reference's numbers within a budget, or a clear error."""
