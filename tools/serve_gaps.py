"""How long streams wait between two tokens while a server reads somebody's long prompt, beside how long they wait otherwise.

    flint serve MODEL --port 8001 &
    llama-server -m MODEL --port 8002 -np 16 -c 32768 -t 2 &
    python3 tools/serve_gaps.py flint=http://127.0.0.1:8001 llama.cpp=http://127.0.0.1:8002

Some streams generate, first alone and then with one prompt beside them; servers take turns. Printed are, in milliseconds, the
median and 99th percentile of the gaps without the prompt, the same and the longest with it, the 99th percentile with it as a
multiple of the median without, and the time until the prompt is answered. Standard library only.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse

from serve_throughput import WORDS, first_model, prompt


def stream(url, body, times, is_over=lambda: False):
    """Times at which text came, until it ends or is over."""
    host = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{url}: {answer.status} {answer.read().decode()}")
    for line in answer:
        if line.startswith(b"data: {") and any(choice.get("text") for choice in json.loads(line[6:])["choices"]):
            times.append(time.perf_counter())
        if is_over():
            break
    connection.close()


def measure(url, model, round_idx, args):
    """Gaps alone, gaps beside a prompt, and the time from the prompt to its first text."""
    base = {"model": model, "temperature": 0, "stream": True, **json.loads(args.extra)}
    over = threading.Event()
    all_times = [[] for _ in range(args.streams)]
    threads = [
        threading.Thread(
            target=stream,
            args=(url, {**base, "prompt": prompt(round_idx, i, 16), "max_tokens": args.tokens}, times, over.is_set),
        )
        for i, times in enumerate(all_times)
    ]
    for thread in threads:
        thread.start()
    while any(len(times) < args.alone for times in all_times):
        if not all(thread.is_alive() for thread in threads):
            over.set()
            raise SystemExit(f"{url}: a stream ended before {args.alone} tokens: see --alone and --extra")
        time.sleep(0.01)
    words = " ".join(WORDS[(i * i + round_idx + i // 7) % len(WORDS)] for i in range(args.words))
    begin, first = time.perf_counter(), []
    stream(url, {**base, "prompt": f"{round_idx}: {words}", "max_tokens": 1}, first)
    end = first[0] if first else time.perf_counter()
    over.set()
    for thread in threads:
        thread.join()
    alone, beside = [], []
    for times in all_times:
        for before, after in zip(times, times[1:]):
            if after < begin:
                alone.append(after - before)
            elif after > begin and before < end:
                beside.append(after - before)
    if not beside:
        raise SystemExit(f"{url}: the streams ended before the prompt was answered: see --tokens and --extra")
    return alone, beside, end - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--words", type=int, default=1500, help="of the prompt")
    parser.add_argument("--alone", type=int, default=32, help="tokens of each stream before the prompt comes")
    parser.add_argument("--tokens", type=int, default=1000, help="of a stream at most")
    parser.add_argument("--rounds", type=int, default=5)
    extra = 'more fields of each request, as JSON, such as {"logit_bias": {"2": -100}} lest texts end'
    parser.add_argument("--extra", default="{}", help=extra)
    args = parser.parse_args()
    servers = [server.split("=", 1) for server in args.servers]
    models = {name: first_model(url) for name, url in servers}
    results = {name: ([], [], []) for name, _ in servers}
    for round_idx in range(args.rounds):
        for name, url in servers[:: 1 if round_idx % 2 == 0 else -1]:
            alone, beside, seconds = measure(url, models[name], round_idx, args)
            for sums, more in zip(results[name], (alone, beside, [seconds])):
                sums += more
    print("server         alone: p50      p99    beside: p50      p99      max    p99 / alone    prompt (s)")
    for name, (alone, beside, seconds) in results.items():
        (usual, alone_p99), (p50, p99) = (
            [1e3 * sorted(gaps)[int(share * len(gaps))] for share in (0.5, 0.99)] for gaps in (alone, beside)
        )
        most, prompt_s = 1e3 * max(beside), statistics.median(seconds)
        print(
            f"{name:12}{usual:13.1f}{alone_p99:9.1f}{p50:15.1f}{p99:9.1f}{most:9.1f}{p99 / usual:15.2f}{prompt_s:14.2f}"
        )


if __name__ == "__main__":
    main()
