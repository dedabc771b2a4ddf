"""What a run leaves on the disk: folder, configuration, log, checkpoints, sampler, events; import its modules."""
