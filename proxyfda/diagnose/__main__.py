import sys

from proxyfda.diagnose.command import main
from proxyfda.utils.errors import show_user_errors

if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
