"""torchrun without the page of text about its insides: `python -m edgekd.pipeline.torchrun [options] -m edgekd ..`."""

from __future__ import annotations

import logging
import sys

from edgekd.files import die_with_parent


def main() -> int:
    """Start the processes and wait for them: 0, or 1 when one died and no restart is left."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    die_with_parent()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run(parse_args(sys.argv[1:]))  # type: ignore[no-untyped-call]
    except ChildFailedError:
        return 1
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
