"""The first tables: predictions, and feedback that refers to them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "prediction",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("task", sa.String(100), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("question", sa.Text),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("probabilities", sa.Text),
    )
    op.create_index("ix_prediction_created", "prediction", ["created"])
    op.create_index("ix_prediction_task", "prediction", ["task"])
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "prediction_id",
            sa.String(36),
            sa.ForeignKey("prediction.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("correct", sa.Boolean),
        sa.Column("target", sa.Text),
        sa.Column("key_id", sa.String(100)),
    )
    op.create_index("ix_feedback_prediction_id", "feedback", ["prediction_id"])


def downgrade() -> None:
    """Drop both tables, with all they hold."""
    op.drop_table("feedback")
    op.drop_table("prediction")
