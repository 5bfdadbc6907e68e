"""The chart's admission: the Service that the API server asks, and who makes the certificate."""

from bitnet_operator.webhook import PATH
from chart import container, render

WEBHOOK = "trial-bitnet-operator-webhook"
"""Name of its Service, its Secret and its configuration."""


def test_the_api_server_asks_a_service_that_leads_to_the_operators_port() -> None:
    found = render()
    (hook,) = found["ValidatingWebhookConfiguration webhook"]["webhooks"]
    service = hook["clientConfig"]["service"]
    assert service == {"name": WEBHOOK, "namespace": "bitnet", "path": f"/{PATH}", "port": 443}
    assert found["Service webhook"]["metadata"]["name"] == WEBHOOK
    assert found["Service webhook"]["spec"]["ports"][0]["targetPort"] == "webhook"
    ports = {port["name"]: port["containerPort"] for port in container(found)["ports"]}
    assert f"--webhook-port={ports['webhook']}" in container(found)["args"]
    assert f"--webhook-name={WEBHOOK}" in container(found)["args"]
    assert (hook["failurePolicy"], hook["timeoutSeconds"], hook["sideEffects"]) == ("Ignore", 5, "None")
    (rule,) = hook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE", "UPDATE"], ["bitnetruns"])
    assert "namespaceSelector" not in hook


def test_the_webhook_asks_about_watched_namespaces_alone_and_may_be_strict() -> None:
    found = render('watchNamespaces=["a","b"]', 'webhook.failurePolicy="Fail"')
    (hook,) = found["ValidatingWebhookConfiguration webhook"]["webhooks"]
    (selected,) = hook["namespaceSelector"]["matchExpressions"]
    assert selected == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert hook["failurePolicy"] == "Fail"


def test_the_operators_own_certificate_is_kept_in_a_secret_that_it_may_fill() -> None:
    found = render()
    assert found["Secret webhook"]["metadata"]["name"] == WEBHOOK
    assert not {"data", "stringData"} & set(found["Secret webhook"])
    assert found["Role webhook"]["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [WEBHOOK], "verbs": ["get", "patch"]}
    ]
    assert found["RoleBinding webhook"]["roleRef"]["name"] == WEBHOOK


def test_cert_manager_makes_the_certificate_where_it_is_asked_to() -> None:
    found = render("webhook.certManager.enabled=true")
    assert not {"Secret webhook", "Role webhook", "RoleBinding webhook"} & set(found)
    assert not any("admissionregistration" in str(rule) for rule in found["ClusterRole"]["rules"])
    certificate = found["Certificate webhook"]["spec"]
    assert certificate["dnsNames"] == [f"{WEBHOOK}.bitnet.svc"]
    issuer = found["Issuer webhook"]["metadata"]["name"]
    assert certificate["issuerRef"] == {"kind": "Issuer", "name": issuer}
    annotations = found["ValidatingWebhookConfiguration webhook"]["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": f"bitnet/{WEBHOOK}"}
    (mount,) = [each for each in container(found)["volumeMounts"] if each["name"] == "webhook"]
    assert f"--webhook-certificates={mount['mountPath']}" in container(found)["args"]
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "webhook", "secret": {"secretName": certificate["secretName"]}} in volumes
    given = render('webhook.certManager={"enabled":true,"issuerRef":{"name":"ca","kind":"ClusterIssuer"}}')
    assert "Issuer webhook" not in given
    assert given["Certificate webhook"]["spec"]["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer"}


def test_without_the_webhook_nothing_of_it_is_there() -> None:
    for cert_manager in ("false", "true"):
        found = render("webhook.enabled=false", f"webhook.certManager.enabled={cert_manager}")
        del found["CustomResourceDefinition"]
        assert "webhook" not in str(found).lower()
        assert {"Secret webhook", "Certificate webhook", "Issuer webhook", "Service webhook"}.isdisjoint(
            found
        )
