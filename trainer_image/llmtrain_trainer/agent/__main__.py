import sys

from llmtrain_trainer.agent.start import main

sys.exit(main())
