from megatron_compete.cli import main

main()
