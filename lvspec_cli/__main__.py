"""``python -m lvspec_cli``."""

from lvspec_cli.cli.main import main

if __name__ == "__main__":
    main()
