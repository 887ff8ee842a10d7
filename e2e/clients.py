"""What the Python SDK sees of a server by URL: one line of JSON.

Usage: clients.py URL IDENTITY [h2]
"""

import asyncio
import json
import ssl
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, identity: str, http2: bool) -> None:
    context = ssl.create_default_context(cafile=identity)
    context.load_cert_chain(identity)
    seen, progress = {}, []

    async def show(done: float, total: float | None, message: str | None) -> None:
        progress.append(done)

    async with httpx2.AsyncClient(verify=context, http2=http2, timeout=30) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            seen["tools"] = sorted(t.name for t in (await client.list_tools()).tools)
            seen["prompts"] = sorted(p.name for p in (await client.list_prompts()).prompts)
            seen["echo"] = (await client.call_tool("echo", {"message": "hello ☃"})).content[0].text
            seen["sum"] = (await client.call_tool("get-sum", {"a": 2, "b": 40})).content[0].text
            await client.call_tool("trigger-long-running-operation", {"duration": 1, "steps": 2}, progress_callback=show)
            seen["progress"] = len(progress) > 0
            resource = (await client.list_resources()).resources[0]
            seen["resource"] = len((await client.read_resource(resource.uri)).contents)
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1], sys.argv[2], "h2" in sys.argv[3:]))
