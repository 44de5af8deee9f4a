"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "capture_files",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("loop", "key", name=op.f("pk_capture_files")),
    )
    op.create_table(
        "cursors",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("loop", "name", name=op.f("pk_cursors")),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("excluded", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("loop", "number", name=op.f("pk_dataset_versions")),
        sa.UniqueConstraint("loop", "digest", name=op.f("uq_dataset_versions_loop_digest")),
    )
    op.create_table(
        "decisions",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=False),
        sa.Column("promoted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("loop", "model_version", name=op.f("pk_decisions")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_loop"), ["loop"], unique=False)

    op.create_table(
        "refusals",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("reference", sa.String(length=512), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("loop", "kind", "reference", name=op.f("pk_refusals")),
    )
    op.create_table(
        "samples",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("image_key", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("burst_id", sa.Text(), nullable=True),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("captured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ingested_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("loop", "sample_id", name=op.f("pk_samples")),
    )
    with op.batch_alter_table("samples", schema=None) as batch_op:
        batch_op.create_index("ix_samples_role", ["loop", "role"], unique=False)

    op.create_table(
        "selections",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("selection_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("policy_digest", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("encoder", sa.Text(), nullable=False),
        sa.Column("objective", sa.Float(), nullable=False),
        sa.Column("terms", sa.JSON(), nullable=False),
        sa.Column("shortfall", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("loop", "selection_id", name=op.f("pk_selections")),
        sa.UniqueConstraint("loop", "number", name=op.f("uq_selections_loop_number")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("annotation_ids", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    with op.batch_alter_table("webhooks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_webhooks_loop"), ["loop"], unique=False)

    op.create_table(
        "annotations",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("annotation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("annotator", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("skipped", sa.Boolean(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.Column("origin", sa.String(length=32), nullable=False),
        sa.Column("lead_time_s", sa.Float(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("collected_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["loop", "sample_id"], ["samples.loop", "samples.sample_id"], name=op.f("fk_annotations_loop_sample_id")
        ),
        sa.PrimaryKeyConstraint("loop", "annotation_id", name=op.f("pk_annotations")),
    )
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.create_index("ix_annotations_sample", ["loop", "sample_id"], unique=False)

    op.create_table(
        "labels",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("selection_id", sa.String(length=64), nullable=True),
        sa.Column("annotation_ids", sa.JSON(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_in", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["loop", "sample_id"], ["samples.loop", "samples.sample_id"], name=op.f("fk_labels_loop_sample_id")
        ),
        sa.PrimaryKeyConstraint("loop", "sample_id", name=op.f("pk_labels")),
    )
    op.create_table(
        "predictions",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("probs", sa.LargeBinary(), nullable=False),
        sa.Column("member_probs", sa.LargeBinary(), nullable=True),
        sa.Column("encoder", sa.Text(), nullable=True),
        sa.Column("policies", sa.JSON(), nullable=False),
        sa.Column("propensity", sa.Float(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["loop", "sample_id"], ["samples.loop", "samples.sample_id"], name=op.f("fk_predictions_loop_sample_id")
        ),
        sa.PrimaryKeyConstraint("loop", "sample_id", "model_version", name=op.f("pk_predictions")),
    )
    op.create_table(
        "queue_items",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("selection_id", sa.String(length=64), nullable=False),
        sa.Column("arm", sa.String(length=16), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("receipt", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["loop", "sample_id"], ["samples.loop", "samples.sample_id"], name=op.f("fk_queue_items_loop_sample_id")
        ),
        sa.ForeignKeyConstraint(
            ["loop", "selection_id"],
            ["selections.loop", "selections.selection_id"],
            name=op.f("fk_queue_items_loop_selection_id"),
        ),
        sa.PrimaryKeyConstraint("loop", "sample_id", name=op.f("pk_queue_items")),
    )
    with op.batch_alter_table("queue_items", schema=None) as batch_op:
        batch_op.create_index("ix_queue_items_state", ["loop", "state"], unique=False)

    op.create_table(
        "tasks",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["loop", "sample_id"], ["samples.loop", "samples.sample_id"], name=op.f("fk_tasks_loop_sample_id")
        ),
        sa.PrimaryKeyConstraint("loop", "sample_id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("loop", "project_id", "task_id", name=op.f("uq_tasks_loop_project_id_task_id")),
    )
    op.create_table(
        "trainings",
        sa.Column("loop", sa.String(length=48), nullable=False),
        sa.Column("training_key", sa.String(length=64), nullable=False),
        sa.Column("dataset_number", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["loop", "dataset_number"],
            ["dataset_versions.loop", "dataset_versions.number"],
            name=op.f("fk_trainings_loop_dataset_number"),
        ),
        sa.PrimaryKeyConstraint("loop", "training_key", name=op.f("pk_trainings")),
    )
    with op.batch_alter_table("trainings", schema=None) as batch_op:
        batch_op.create_index(
            "uq_trainings_running",
            ["loop"],
            unique=True,
            sqlite_where=sa.text("state = 'running'"),
            postgresql_where=sa.text("state = 'running'"),
        )

    # ### end Alembic commands ###


def downgrade() -> None:
    with op.batch_alter_table("trainings", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_trainings_running",
            sqlite_where=sa.text("state = 'running'"),
            postgresql_where=sa.text("state = 'running'"),
        )

    op.drop_table("trainings")
    op.drop_table("tasks")
    with op.batch_alter_table("queue_items", schema=None) as batch_op:
        batch_op.drop_index("ix_queue_items_state")

    op.drop_table("queue_items")
    op.drop_table("predictions")
    op.drop_table("labels")
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.drop_index("ix_annotations_sample")

    op.drop_table("annotations")
    with op.batch_alter_table("webhooks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_webhooks_loop"))

    op.drop_table("webhooks")
    op.drop_table("selections")
    with op.batch_alter_table("samples", schema=None) as batch_op:
        batch_op.drop_index("ix_samples_role")

    op.drop_table("samples")
    op.drop_table("refusals")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_loop"))

    op.drop_table("events")
    op.drop_table("decisions")
    op.drop_table("dataset_versions")
    op.drop_table("cursors")
    op.drop_table("capture_files")
    # ### end Alembic commands ###
