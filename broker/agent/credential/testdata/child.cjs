// What a server in Node finds: its account, a token, and the ID token that it may have.
const { GoogleAuth } = require("google-auth-library");

async function main() {
  const scopes = process.env.TEST_SCOPES.split(",");
  const auth = new GoogleAuth({ scopes });
  const out = { project: await auth.getProjectId() };
  const client = await auth.getClient();
  out.token = (await client.getAccessToken()).token;
  out.email = (await auth.getCredentials()).client_email;
  const { env } = process;
  out.identity = await (await auth.getIdTokenClient(env.TEST_AUDIENCE)).idTokenProvider.fetchIdToken(env.TEST_AUDIENCE);
  try {
    await (await auth.getIdTokenClient("https://other.example")).idTokenProvider.fetchIdToken("https://other.example");
  } catch (err) {
    out.refused = String(err.message);
  }
  console.log(JSON.stringify(out));
}

main().catch((err) => {
  console.error(err.message);
  process.exit(1);
});
