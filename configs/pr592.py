"""Pull request #592: 12 layers, Int5 MLP, BigramHash 10,240, EMA; 1.1476 BPB on eight H100."""

from jgolf.config import Config


def config() -> Config:
    return Config(name="pr592")  # the defaults are this recipe
