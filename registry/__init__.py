"""Candidate to champion: MLflow runs and versions, the gate, promotion and rollback."""
