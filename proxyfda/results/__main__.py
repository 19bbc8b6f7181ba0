import sys

from proxyfda.errors import tell_mistakes
from proxyfda.results import main

if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
