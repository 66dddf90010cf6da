{%- set days = var("business_hours") %}
{%- if days is string or days is not sequence or days | length != 7 %}
{{- exceptions.raise_compiler_error("business_hours: " ~ days ~ " are not 7 texts, from Monday to Sunday") }}
{%- endif %}
{%- set minutes = [] %}
{%- for hours in days %}
{%- set times = (hours or "00:00-00:00") | string %}
{%- set is_form = modules.re.fullmatch("\\d\\d:[0-5]\\d-\\d\\d:[0-5]\\d", times) %}
{%- if not is_form or (hours and not times[:5] < times[6:] <= "24:00") %}
{{- exceptions.raise_compiler_error("business_hours: " ~ hours ~ " are not business hours: write 09:00-18:00") }}
{%- endif %}
{%- set times = times.replace("-", ":").split(":") | map("int") | list %}
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
