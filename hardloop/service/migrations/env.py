"""Alembic's entry point: runs migrations on the connection that `database.migrate` hands over."""

from alembic import context

from hardloop.service.database import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
