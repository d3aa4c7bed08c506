"""Access keys of the served models: who may ask, until when and how often."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; of the keys that are not revoked, no two bear one name."""
    op.create_table(
        "access_keys",
        sa.Column("prefix", sa.String(11), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32), nullable=True),
        sa.Column("revoked", sa.String(32), nullable=True),
        sa.Column("rate", sa.Integer, nullable=True),
    )
    unrevoked = sa.text("revoked IS NULL")
    op.create_index(
        "access_keys_name", "access_keys", ["name"], unique=True, sqlite_where=unrevoked, postgresql_where=unrevoked
    )


def downgrade() -> None:
    """There is no way back: the ledger of the same database has none either."""
    raise NotImplementedError("there is no way back to a database without access keys")
