"""One seed's history, told as it happens: `make sim SEED=7`."""

import argparse
import logging
import sys

from tests.sim.storm import Storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim", description="One simulated history again.")
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    logging.basicConfig(level=logging.WARNING, format="          %(name)s: %(message)s", stream=sys.stdout)
    storm = Storm(seed, tell=print)
    try:
        print(storm.run())
    except AssertionError as error:
        print(f"seed {seed}: {error}")
        return 1
    finally:
        for told in (entry.data for entry in storm.sim.world.memory.events):
            where = f"{told['at'][-7:]} {told['id'][-6:]} {told['status']:10} {told['reason']:16}"
            print(f"{where} v{told.get('version', '-')} {told['by']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
