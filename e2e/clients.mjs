// Real clients by URL: both TypeScript SDKs, the Python SDK over HTTP/1.1 and
// HTTP/2, and the Inspector's CLI, at server-everything behind a broker and an
// agent. All have to see the same. Usage: node clients.mjs BROKER PYTHON
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import tls from "node:tls";
import { Client as NewClient, StreamableHTTPClientTransport as NewHTTP } from "@modelcontextprotocol/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { House, freePort, certified } from "./house.mjs";

const [broker, python] = process.argv.slice(2);
const house = new House(broker);
const modules = join(import.meta.dirname, "node_modules");

async function sdk(client, transport) {
  await client.connect(transport);
  const text = async (name, args, options) => (await client.callTool({ name, arguments: args }, ...(options ? [undefined, options] : []))).content[0].text;
  const progress = [];
  const seen = {
    tools: (await client.listTools()).tools.map((t) => t.name).sort(),
    prompts: (await client.listPrompts()).prompts.map((p) => p.name).sort(),
    echo: await text("echo", { message: "hello ☃" }),
    sum: await text("get-sum", { a: 2, b: 40 }),
  };
  if (client instanceof Client) await text("trigger-long-running-operation", { duration: 1, steps: 2 }, { onprogress: (p) => progress.push(p) });
  else await client.callTool({ name: "trigger-long-running-operation", arguments: { duration: 1, steps: 2 } }, { onprogress: (p) => progress.push(p) });
  seen.progress = progress.length > 0;
  const { resources } = await client.listResources();
  seen.resource = (await client.readResource({ uri: resources[0].uri })).contents.length;
  await client.close();
  return seen;
}

// The Inspector has no place for a client certificate, so that something else
// makes the connection; what it says goes on as it is.
async function plainPort(to, identity) {
  const port = await freePort();
  const server = createServer((client) => {
    const [host, p] = to.split(":");
    const there = tls.connect({ host, port: Number(p), servername: "localhost", ca: identity, cert: identity, key: identity, ALPNProtocols: ["http/1.1"] });
    client.pipe(there).pipe(client);
    const end = () => (client.destroy(), there.destroy());
    for (const c of [client, there]) c.on("error", end).on("close", end);
  });
  await new Promise((r) => server.listen(port, "127.0.0.1", r));
  server.unref();
  return port;
}

async function main() {
  const serve = await house.serve(`servers: {everything: {agent: e2e}}
policy:
  - {name: all, users: [ada], servers: [everything], access: allow, mask: [secrets, email, credit_card]}
`);
  house.run("ca", "issue", "--user", "ada", "--out", "ada.pem");
  const identity = join(house.dir, "ada.pem");
  writeFileSync(join(house.dir, "agent.yaml"), `broker: ${house.addr}
name: e2e
${house.run("token", "create", "--agent", "e2e")}servers:
  everything: {stdio: [${process.execPath}, ${join(modules, "@modelcontextprotocol/server-everything/dist/index.js")}, stdio]}
`);
  house.start("agent");
  await house.until("the agent is connected", () => serve.log.includes("tunnel is up"));
  const url = `https://${house.addr}/everything/mcp`;
  const fetch = certified(readFileSync(identity));

  const all = {
    "TypeScript SDK 1": await sdk(new Client({ name: "e2e", version: "1" }), new StreamableHTTPClientTransport(new URL(url), { fetch })),
    "TypeScript SDK 2": await sdk(new NewClient({ name: "e2e", version: "1" }), new NewHTTP(new URL(url), { fetch })),
  };
  for (const version of ["h1", "h2"])
    all[`Python SDK, ${version}`] = JSON.parse(execFileSync(python, [join(import.meta.dirname, "clients.py"), url, identity, version], { encoding: "utf8", timeout: 60_000 }));
  const first = all["TypeScript SDK 1"];
  assert.ok(first.tools.length > 8 && first.progress && first.echo.includes("hello ☃") && first.sum.includes("42"), JSON.stringify(first));
  for (const [name, seen] of Object.entries(all)) assert.deepEqual(seen, first, name);

  const port = await plainPort(house.addr, readFileSync(identity));
  const inspect = async (...args) => {
    const { execFile } = await import("node:child_process");
    return new Promise((done, failed) => execFile(join(modules, ".bin/mcp-inspector"), ["--cli", `http://127.0.0.1:${port}/everything/mcp`, "--transport", "http", ...args], { timeout: 60_000 }, (e, out, err) => (e ? failed(new Error(`inspector: ${err}`)) : done(JSON.parse(out)))));
  };
  assert.deepEqual((await inspect("--method", "tools/list")).tools.map((t) => t.name).sort(), first.tools);
  assert.match((await inspect("--method", "tools/call", "--tool-name", "get-sum", "--tool-arg", "a=2", "b=40")).content[0].text, /42/);
  assert.match(serve.log, /transport=h2/);
  console.log(`clients: ${Object.keys(all).join(", ")} and the Inspector see the same ${first.tools.length} tools by URL`);
}

let failure;
try {
  await main();
} catch (e) {
  failure = e;
}
await house.over(failure);
process.exit(failure ? 1 : 0);
