"""A folder of images to webdataset shards."""
