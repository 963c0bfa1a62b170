"""``python -m alrao_rl.train``."""

from alrao_rl.cli.interruption import exit_at_once, leave

exit_at_once()  # the import below takes a moment

from alrao_rl.train.command import main  # noqa: E402

leave(main())
