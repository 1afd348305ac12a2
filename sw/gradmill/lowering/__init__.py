"""From a network to instruction streams: layouts, footprints, semaphores, programs."""
