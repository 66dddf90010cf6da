{%- for bot in var("bots") %}
SELECT '{{ bot | replace("'", "''") }}' AS sender_id
{%- if not loop.last %} UNION ALL{% endif %}
{%- else %}
SELECT CAST(NULL AS {{ dbt.type_string() }}) AS sender_id WHERE 1 = 0
{%- endfor %}
