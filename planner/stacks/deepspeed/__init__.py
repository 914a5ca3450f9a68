"""DeepSpeed's configuration in JSON: ZeRO 0 to 3, optimizer offload, pipelines."""
