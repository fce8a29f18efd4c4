"""What happens to a dataset: label, refine, query, export, evaluate."""
