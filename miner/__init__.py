"""What is worth a person's time: uncertainty, neighbours, coverage and the budget."""
