from megatron_compete.study.regions.train import main

main()
