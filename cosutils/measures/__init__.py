"""What is measured on recorded runs, one module for each question."""
