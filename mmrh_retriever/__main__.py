"""``python -m mmrh_retriever`` is ``mmrh``."""

import sys


def main() -> None:
    """Run ``mmrh`` on ``sys.argv``; Ctrl-C while it is imported ends it with exit code 130, as it does later."""
    try:
        from mmrh_retriever.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
