"""Alembic's entry: runs the migrations on the connection that `store` hands over."""

from alembic import context

from fintune.monitoring.store import TABLES

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=TABLES, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
