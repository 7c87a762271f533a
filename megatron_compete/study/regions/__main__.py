from megatron_compete.study.regions.train import main

if __name__ == "__main__":
    main()
