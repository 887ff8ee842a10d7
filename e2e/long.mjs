// Long answers by URL: both TypeScript SDKs at servers of the official SDK that answer in
// JSON, in events and over stdio, and at one that breaks off. Usage: node long.mjs BROKER
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { Client as NewClient, StreamableHTTPClientTransport as NewHTTP } from "@modelcontextprotocol/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { House, certified } from "./house.mjs";

const row = (n, mail) => `row ${n}: "Ada \\ Byron" <${mail}>, ☃ and what else there is of her\n`;
const report = (mail) => Array.from({ length: 60_000 }, (_, n) => row(n, mail)).join(""); // 4 MB

function server() {
  const s = new McpServer({ name: "long", version: "1" });
  s.registerTool("report", {}, () => ({ content: [{ type: "text", text: report("ada@example.com") }] }));
  return s;
}

async function listen(handler) {
  const s = createServer(handler);
  await new Promise((r) => s.listen(0, "127.0.0.1", r));
  s.unref();
  return `http://127.0.0.1:${s.address().port}/mcp`;
}

// official answers with the official server, in JSON or in events.
function official(enableJsonResponse) {
  return listen(async (req, res) => {
    const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse });
    await server().connect(transport);
    await transport.handleRequest(req, res);
  });
}

// breaking answers with the official server but for a call: its answer breaks off.
async function breaking(events) {
  const whole = new URL(await official(!events));
  return listen(async (req, res) => {
    const chunks = [];
    for await (const c of req) chunks.push(c);
    const body = Buffer.concat(chunks);
    if (req.method === "POST" && JSON.parse(body).method === "tools/call") {
      res.writeHead(200, { "content-type": events ? "text/event-stream" : "application/json" });
      const text = JSON.stringify({ jsonrpc: "2.0", id: JSON.parse(body).id, result: { content: [{ type: "text", text: report("ada@example.com") }] } });
      res.write((events ? "event: message\ndata: " : "") + text.slice(0, 3_000_000), () => res.destroy());
      return;
    }
    const { host, "content-length": _, ...headers } = req.headers;
    const answer = await fetch(whole, { method: req.method, headers, body: req.method === "POST" ? body : undefined });
    res.writeHead(answer.status, Object.fromEntries(answer.headers));
    res.end(Buffer.from(await answer.arrayBuffer()));
  });
}

async function main(broker) {
  const house = new House(broker);
  let failure;
  try {
    const names = ["json", "events", "stdio", "broken-json", "broken-events"];
    const serve = await house.serve(`servers: {${names.map((n) => `${n}: {agent: e2e}`).join(", ")}}
policy:
  - {name: all, users: [ada], servers: ["*"], access: allow, mask: [secrets, email]}
`);
    house.run("ca", "issue", "--user", "ada", "--out", "ada.pem");
    writeFileSync(join(house.dir, "agent.yaml"), `broker: ${house.addr}
name: e2e
${house.run("token", "create", "--agent", "e2e")}servers:
  json: {http: "${await official(true)}"}
  events: {http: "${await official(false)}"}
  stdio: {stdio: [${process.execPath}, ${import.meta.filename}, --stdio]}
  broken-json: {http: "${await breaking(false)}"}
  broken-events: {http: "${await breaking(true)}"}
`);
    house.start("agent");
    await house.until("the agent is connected", () => serve.log.includes("tunnel is up"));
    const fetch = certified(readFileSync(join(house.dir, "ada.pem")));
    const clients = {
      "TypeScript SDK 1": (url) => [new Client({ name: "e2e", version: "1" }), new StreamableHTTPClientTransport(url, { fetch })],
      "TypeScript SDK 2": (url) => [new NewClient({ name: "e2e", version: "1" }), new NewHTTP(url, { fetch })],
    };
    const want = report("[masked:email]");
    for (const [sdk, make] of Object.entries(clients)) {
      for (const name of names) {
        const [client, transport] = make(new URL(`https://${house.addr}/${name}/mcp`));
        await client.connect(transport);
        const asked = client.callTool({ name: "report", arguments: {} });
        if (name.startsWith("broken")) {
          await assert.rejects(asked, name === "broken-events" ? /was cut/ : undefined, `${sdk}, ${name}`);
          await client.ping(); // the session goes on
        } else {
          assert.ok((await asked).content[0].text === want, `${sdk}, ${name}: another text`);
        }
        await client.close();
      }
    }
    console.log(`long: ${Object.keys(clients).join(" and ")} get 4 MB by URL, masked, from servers in JSON, in events and over stdio, and go on where one breaks off`);
  } catch (e) {
    failure = e;
  }
  await house.over(failure);
  process.exit(failure ? 1 : 0);
}

if (process.argv[2] === "--stdio") await server().connect(new StdioServerTransport());
else await main(process.argv[2]);
