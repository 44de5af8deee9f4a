"""Labels to a candidate model: dataset versions, recipes, the trainer and its evaluation."""
