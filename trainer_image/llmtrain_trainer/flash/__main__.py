import sys

from llmtrain_trainer.flash.tool import main

if __name__ == "__main__":
    sys.exit(main())
