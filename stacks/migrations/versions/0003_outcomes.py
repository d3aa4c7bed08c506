"""Outcomes: what turned out to be true of a logged prediction."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; one outcome of one prediction is in it once, another one of the same prediction beside it."""
    op.create_table(
        "outcomes",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("prediction_id", sa.String(48), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=True),
        sa.Column("received", sa.Double, nullable=False),
    )
    op.create_index("outcomes_once", "outcomes", ["prediction_id", "outcome"], unique=True)
    op.create_index("outcomes_model", "outcomes", ["model", "prediction_id"])


def downgrade() -> None:
    """There is no way back: the ledger of the same database has none either."""
    raise NotImplementedError("there is no way back to a database without outcomes")
