"""The wiring and the doors: settings, database, durable steps, API, CLI and embedded services."""
