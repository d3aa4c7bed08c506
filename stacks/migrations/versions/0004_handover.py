"""The hand-over from one champion to the next: who serves, who is ready, and when all of them switch."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables; moments are seconds since the epoch."""
    op.create_table(
        "serving_workers",
        sa.Column("worker", sa.String(96), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("seen", sa.Float(53), nullable=False),
    )
    op.create_table(
        "serving_ready",
        sa.Column("worker", sa.String(96), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "serving_switches",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
    )


def downgrade() -> None:
    """There is no way back: the ledger of the same database has none either."""
    raise NotImplementedError("there is no way back to a database without the hand-over's tables")
