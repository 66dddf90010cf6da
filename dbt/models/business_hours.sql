{%- set minutes = [] %}
{%- for hours in var("business_hours") %}
{%- set times = (hours or "00:00-00:00").replace("-", ":").split(":") | map("int") | list %}
{%- do minutes.append((times[0] * 60 + times[1], times[2] * 60 + times[3])) %}
{%- endfor %}
{%- set week = minutes | map("last") | sum - minutes | map("first") | sum %}
{%- for opens, closes in minutes %}
{%- set before = minutes[:loop.index0] | map("last") | sum - minutes[:loop.index0] | map("first") | sum %}
SELECT {{ loop.index }} AS weekday, CAST({{ opens * 60000 }} AS BIGINT) AS opens_ms,
       CAST({{ closes * 60000 }} AS BIGINT) AS closes_ms, CAST({{ before * 60000 }} AS BIGINT) AS before_ms,
       CAST({{ week * 60000 }} AS BIGINT) AS week_ms
{%- if not loop.last %} UNION ALL{% endif %}
{%- endfor %}
