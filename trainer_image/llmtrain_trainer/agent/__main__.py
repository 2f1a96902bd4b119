import sys

from llmtrain_trainer.agent.main import main

sys.exit(main())
