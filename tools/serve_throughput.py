"""Tokens per second and time to first token of servers that speak OpenAI's interface, side by side.

    flint serve MODEL --port 8001 &
    llama-server -m MODEL --port 8002 -np 16 -c 16384 -t 2 &
    python3 tools/serve_throughput.py flint=http://127.0.0.1:8001 llama.cpp=http://127.0.0.1:8002

For each number of concurrent streams every server answers the same requests, one server after the other, several rounds
of it; medians are printed. Prompts differ in their first word, so that none is known from another. Standard library only.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse

WORDS = "river stone cloud paper garden winter engine silver window forest candle bridge harbour meadow copper lantern".split()


def prompt(round_idx, stream, n_words):
    words = [WORDS[(round_idx * 7 + stream * 3 + i * (i + stream + 1)) % len(WORDS)] for i in range(n_words)]
    return f"{round_idx}.{stream}: write a long story in which these words occur: " + " ".join(words) + ".\n"


def complete(url, body, out):
    """One streamed completion: appends (seconds to the first text, tokens)."""
    host = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=600)
    begin = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{url}: {answer.status} {answer.read().decode()}")
    first, tokens = None, 0
    for line in answer:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        chunk = json.loads(line[6:])
        if first is None and any(choice.get("text") for choice in chunk.get("choices", [])):
            first = time.perf_counter() - begin
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    out.append((first or time.perf_counter() - begin, tokens))


def measure(url, model, round_idx, args, n_streams):
    """Tokens per second of all streams together, and their times to the first text."""
    results = []
    bodies = [
        {
            "model": model,
            "prompt": prompt(round_idx, stream, args.words),
            "max_tokens": args.tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **json.loads(args.extra),
        }
        for stream in range(n_streams)
    ]
    begin = time.perf_counter()
    threads = [threading.Thread(target=complete, args=(url, body, results)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if len(results) != n_streams:
        raise SystemExit(f"{url}: {n_streams - len(results)} of {n_streams} requests failed")
    return sum(tokens for _, tokens in results) / seconds, [first for first, _ in results]


def first_model(url):
    """The name of a server's first model; waits until there is one."""
    host = urllib.parse.urlsplit(url)
    for _ in range(120):
        connection = http.client.HTTPConnection(host.hostname, host.port, timeout=60)
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        if answer.status == 200:
            return json.loads(answer.read())["data"][0]["id"]
        time.sleep(1)
    raise SystemExit(f"{url} is not ready: {answer.status}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=64)
    parser.add_argument("--extra", default="{}", help="more fields of each request, as JSON")
    args = parser.parse_args()
    servers = [server.split("=", 1) for server in args.servers]
    models = {name: first_model(url) for name, url in servers}
    print("streams  server        tokens/s    to first text: p50      p95  (ms)")
    for n_streams in map(int, args.streams.split(",")):
        speeds = {name: [] for name, _ in servers}
        firsts = {name: [] for name, _ in servers}
        for round_idx in range(args.rounds):
            # In turn one goes first, then the other.
            for name, url in servers[:: 1 if round_idx % 2 == 0 else -1]:
                speed, first = measure(url, models[name], 100 * n_streams + round_idx, args, n_streams)
                speeds[name].append(speed)
                firsts[name] += first
        for name, _ in servers:
            first = sorted(firsts[name])
            p50, p95 = (1e3 * first[min(len(first) - 1, int(p * len(first)))] for p in (0.5, 0.95))
            print(f"{n_streams:7}  {name:12}{statistics.median(speeds[name]):10.1f}    {p50:18.0f} {p95:8.0f}")


if __name__ == "__main__":
    main()
