from llmtrain_operator.coordinator.main import main

main()
