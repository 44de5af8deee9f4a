"""What comes back from production: capture, serving with hot reload, and the retrain trigger."""
