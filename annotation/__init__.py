"""Talking to people: tasks, answers and Label Studio."""
