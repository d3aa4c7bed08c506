"""What monitoring found, and who was told of it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables; moments are seconds since the epoch."""
    op.create_table(
        "findings",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("check_name", sa.Text, nullable=False),
        sa.Column("since", sa.Float(53), nullable=False),
        sa.Column("until", sa.Float(53), nullable=False),
        sa.Column("looked", sa.Float(53), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.create_index("findings_of", "findings", ["model", "until"])
    op.create_table(
        "alerts",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("raised", sa.Float(53), nullable=False),
        sa.Column("told", sa.Float(53)),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("recovered", sa.Float(53)),
        sa.Column("owed", sa.Text, nullable=False),
    )
    still_open = sa.text("recovered IS NULL")
    op.create_index(
        "alerts_open", "alerts", ["model", "subject"], unique=True, sqlite_where=still_open, postgresql_where=still_open
    )


def downgrade() -> None:
    """There is no way back: the ledger of the same database has none either."""
    raise NotImplementedError("there is no way back to a database without the tables of monitoring")
