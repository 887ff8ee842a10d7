// Calls every tool of server-everything directly and through `broker connect`,
// over TLS and QUIC, and compares. Usage: node compare.mjs BROKER
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const broker = process.argv[2];
const everything = join(import.meta.dirname, "node_modules/@modelcontextprotocol/server-everything/dist/index.js");
const inspector = join(import.meta.dirname, "node_modules/.bin/mcp-inspector");
// The server tells its environment, so that it is given one.
const server = ["env", "-i", `PATH=${process.env.PATH}`, process.execPath, everything, "stdio"];
const env = { PATH: process.env.PATH, HOME: process.env.HOME };
const dir = mkdtempSync(join(tmpdir(), "broker-e2e-"));
const children = [];

function start(...args) {
  const child = spawn(broker, args, { cwd: dir, env, stdio: ["ignore", "ignore", "pipe"] });
  child.log = "";
  child.stderr.on("data", (d) => (child.log += d));
  children.push(child);
  return child;
}

async function until(what, is) {
  for (const end = Date.now() + 30_000; !is(); ) {
    if (Date.now() > end) throw new Error(`it never happens that ${what}\n${children.map((c) => c.log).join("\n")}`);
    await new Promise((r) => setTimeout(r, 20));
  }
}

async function freePort() {
  const s = createServer();
  await new Promise((r) => s.listen(0, "127.0.0.1", r));
  const { port } = s.address();
  await new Promise((r) => s.close(r));
  return port;
}

// Arguments that end soon and need no network.
const args = {
  "echo": { message: "hello ☃ \ud83d\ude00 \"quoted\"" },
  "get-sum": { a: 2, b: 40 },
  "trigger-long-running-operation": { duration: 1, steps: 2 },
  "get-annotated-message": { messageType: "error", includeImage: true },
  "get-resource-reference": { resourceType: "Text", resourceId: 1 },
  "get-resource-links": { count: 3 },
  "get-structured-content": { location: "Chicago" },
  "gzip-file-as-resource": { name: "x.txt.gz", data: "data:text/plain,hello", outputType: "resource" },
  "trigger-sampling-request": { prompt: "say something", maxTokens: 10 },
};

// What differs from one run of the server to the next.
const steady = (v) =>
  JSON.parse(JSON.stringify(v)
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, "TIME")
    .replace(/\d{1,2}:\d\d:\d\d [AP]M/g, "TIME")
    .replace(/[0-9a-f]{8}-[0-9a-f-]{27}/g, "UUID"));

async function observe(command, commandArgs) {
  const client = new Client({ name: "e2e", version: "1" }, { capabilities: { sampling: {}, elicitation: {}, roots: { listChanged: true } } });
  client.setRequestHandler(CreateMessageRequestSchema, async (r) => ({
    model: "m", role: "assistant", content: { type: "text", text: "sampled " + JSON.stringify(r.params.messages) },
  }));
  client.setRequestHandler(ElicitRequestSchema, async () => ({ action: "decline" }));
  client.setRequestHandler(ListRootsRequestSchema, async () => ({ roots: [{ uri: "file:///home", name: "home" }] }));
  await client.connect(new StdioClientTransport({ command, args: commandArgs, env, stderr: "ignore" }));
  const seen = { server: client.getServerVersion(), capabilities: client.getServerCapabilities(), instructions: client.getInstructions() };
  const { tools } = await client.listTools();
  seen.tools = tools;
  for (const { name } of tools) {
    const progress = [];
    const options = name.includes("long-running") ? { onprogress: (p) => progress.push(p) } : {};
    try {
      const result = await client.callTool({ name, arguments: args[name] ?? {} }, undefined, options);
      // The SDK drops a progress that it reads together with the result, so only the first is sure.
      seen[`call ${name}`] = { result, progress: progress.slice(0, 1) };
    } catch (e) {
      seen[`call ${name}`] = { error: e.message, code: e.code };
    }
  }
  seen.prompts = await client.listPrompts();
  seen.prompt = await client.getPrompt({ name: "simple-prompt" });
  seen.resources = await client.listResources();
  seen.templates = await client.listResourceTemplates();
  seen.resource = await client.readResource({ uri: seen.resources.resources[0].uri });
  await client.close();
  return steady(seen);
}

async function main() {
  const port = await freePort();
  const addr = `127.0.0.1:${port}`;
  writeFileSync(join(dir, "broker.yaml"), `listen: ${addr}
servers: {everything: {agent: e2e}}
policy:
  - {name: all, users: [ada], servers: [everything], access: allow, mask: [secrets, email, credit_card]}
`);
  const serve = start("serve");
  await until("the broker is up", () => existsSync(join(dir, "data/broker.sock")));
  execFileSync(broker, ["ca", "issue", "--user", "ada", "--out", "ada.pem"], { cwd: dir });
  const token = execFileSync(broker, ["token", "create", "--agent", "e2e"], { cwd: dir, stdio: ["ignore", "pipe", "ignore"] });
  writeFileSync(join(dir, "agent.yaml"), `broker: ${addr}
name: e2e
${token}servers: {everything: {stdio: ${JSON.stringify(server)}}}
`);
  start("agent");
  await until("the agent is connected", () => serve.log.includes("tunnel is up"));

  const direct = await observe(server[0], server.slice(1));
  let compared = 0;
  for (const flags of [[], ["--quic"]]) {
    const brokered = await observe(broker, ["connect", "everything", "--broker", addr, "--identity", join(dir, "ada.pem"), ...flags]);
    for (const what of Object.keys(direct)) {
      assert.deepEqual(brokered[what], direct[what], `${what} ${flags}`);
      compared++;
    }
    assert.deepEqual(Object.keys(brokered), Object.keys(direct));
  }
  console.log(`TypeScript SDK: ${direct.tools.length} tools and ${Object.keys(direct).length - direct.tools.length} other answers are the same over TLS and QUIC (${compared} comparisons)`);

  const list = (...command) => JSON.parse(execFileSync(inspector, ["--cli", ...command, "--method", "tools/list"], { env, encoding: "utf8" }).replace(/^[^{]*/, ""));
  // The inspector's CLI takes options of its own anywhere, so broker's stand in a script.
  const script = join(dir, "connect");
  writeFileSync(script, `#!/bin/sh\nexec ${broker} connect everything --broker ${addr} --identity ${join(dir, "ada.pem")}\n`, { mode: 0o700 });
  const inspected = list(script);
  assert.deepEqual(inspected, list(process.execPath, everything, "stdio"));
  console.log(`Inspector CLI: tools/list is the same, ${inspected.tools.length} tools`);

  const sessions = execFileSync(broker, ["sessions", "--json"], { cwd: dir, encoding: "utf8" }).trim().split("\n").map((l) => JSON.parse(l));
  assert.equal(sessions.length, 3);
  for (const s of sessions) assert.equal(s.subject, "ada");
}

let status = 0;
try {
  await main();
} catch (e) {
  console.error(e);
  for (const c of children) console.error(c.log);
  status = 1;
}
for (const c of children) c.kill("SIGTERM");
await Promise.all(children.map((c) => c.exitCode ?? new Promise((r) => c.on("exit", r))));
rmSync(dir, { recursive: true });
console.log(status ? "e2e: failed" : "e2e: passed");
process.exit(status);
